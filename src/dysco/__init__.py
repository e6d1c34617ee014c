"""Dysco: steer unmodified TCP sessions through chains of middleboxes, and change the chain of a live one."""
