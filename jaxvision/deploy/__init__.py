"""Export: a trained network as a file that runs elsewhere, and the proof that both are the same."""
