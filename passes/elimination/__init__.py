"""The rules of ``eliminate``, one module per concern; each module has a table ``RULES``."""
