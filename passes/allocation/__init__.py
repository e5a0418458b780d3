"""How much to remove from which tensor."""
