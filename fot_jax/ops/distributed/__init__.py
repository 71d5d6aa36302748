"""Attention whose keys are on other devices: rows that travel, and memories in parts."""
