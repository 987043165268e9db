"""Measurements that are compared with what was published: a table, numbers, and a chart of each."""
