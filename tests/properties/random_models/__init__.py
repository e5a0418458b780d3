"""Random valid models that invite every rewrite, from one stream of choices."""
