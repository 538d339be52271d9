"""Networks as plans and arrays, written as graphs for engines that run without Keras."""
