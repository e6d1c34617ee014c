"""Authenticated messages between agents: keys and certificates, DTLS associations, and the UDP channel.

Knows UDP, DTLS and the control messages as values. Must not know what a message means to a chain: that is the
protocol core's business, which also repeats what the channel loses.
"""
