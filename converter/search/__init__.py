"""What each part of a compressed model costs: models compared value by value, piece by piece."""
