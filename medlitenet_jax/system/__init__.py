"""What all other packages use: errors, files, locks, signals, devices, rules and tables."""
