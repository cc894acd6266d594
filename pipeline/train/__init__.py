"""The engine of training: the loop, the learners that take its steps, and the checkpoints. It knows no method."""
