"""Stopping in time: how deep a cut may go before the result misses its budget."""
