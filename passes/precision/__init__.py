"""Mixed precision: types of values, what operators bear, ranges, the plan and its execution."""
