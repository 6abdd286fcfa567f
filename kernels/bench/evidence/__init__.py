"""What peers.py and arm_cycles.py are made of."""
