"""Circuits: kept edges carry what their writer says now, all others a replacement."""
