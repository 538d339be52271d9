"""The network as arrays and operations, for engines that know no Keras."""
