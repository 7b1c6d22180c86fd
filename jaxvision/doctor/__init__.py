"""Whether hosts, devices, storage and a config are fit for a long run: measured, judged, said."""
