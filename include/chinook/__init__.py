"""Chinook, a public sample database of a music shop (© Luis Rocha, see LICENSE.md), as a second example."""
