"""Reading models that nobody trusts, and writing models that nobody can tear."""
