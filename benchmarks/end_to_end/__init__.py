"""Calls of whole methods and metrics: their time, memory and parts."""
