"""What training did: statistics of models on a held-out preference set, and their pictures."""
