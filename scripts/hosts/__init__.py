"""What `scripts/test-hosts` is made of: hosts in network namespaces, what runs on them, and the cases."""
