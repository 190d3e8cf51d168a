"""What every kind of patching shares: both recorded runs, what takes a value's place, rows through the rest."""
