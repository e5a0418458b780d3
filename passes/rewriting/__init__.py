"""What the clean-up passes share: the worklist, facts about values, purity, sizes in the file."""
