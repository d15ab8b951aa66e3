"""Training only there: the reference loop, its rewards, and other people's trainers."""
