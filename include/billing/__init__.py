"""A small subscription billing service, such as a team might have: the example that the migrations here move."""
