"""Ranks, devices, threads and memory: every collective that the program makes."""
