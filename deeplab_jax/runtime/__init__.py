"""Manage devices, processes and compilation."""
