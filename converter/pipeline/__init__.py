"""Running passes one after the other, each as a transaction."""
