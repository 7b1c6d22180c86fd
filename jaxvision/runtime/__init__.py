"""The process and the hardware: hosts, signals, paths, clocks, records, devices. Knows no network."""
