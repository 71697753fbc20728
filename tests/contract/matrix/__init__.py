"""Every type of every store into every type of every other, with the values at their edges."""
