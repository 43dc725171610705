"""Stores and publications side by side: rows, bootstrap intervals, tables and figures."""
