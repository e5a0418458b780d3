"""Names and sizes of dynamic dimensions."""
