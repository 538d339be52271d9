"""A bundle's networks as one graph for engines that know no Keras: OpenVINO, ONNX.

stored.py      a bundle's weight files → arrays by layer, no Keras needed
densenet.py    arrays → the network, in the operations that a `Writer` offers
answer.py      pixels → probability, heatmap, embedding: what an exported graph does
openvino.py onnx.py    the writers
"""
