"""What leaves the house: a trained network as a file that runs elsewhere, and the proof that it is the same."""
