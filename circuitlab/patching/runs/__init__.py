"""What every kind of patching shares: the two recorded runs, what takes a value's place, rows through the rest of the model."""
