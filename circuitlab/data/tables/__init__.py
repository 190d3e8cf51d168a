"""Pairs of prompts from tables: files, data frames and data sets that people have."""
