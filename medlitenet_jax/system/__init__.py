"""What every room stands on: errors, files, locks, signals, devices, processes and tables."""
