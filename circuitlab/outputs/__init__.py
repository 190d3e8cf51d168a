"""Where results are written: checked and reserved before the work, whole or not at all afterwards."""
