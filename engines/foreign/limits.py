"""How much a file from others may ask for; whoever reads one looks here.

A reader never takes more than a small multiple of its file, visits a node once, and gives up after a
stated time. What is over its limit is refused on one line, before anything is allocated.
"""

from __future__ import annotations

MIB = 1 << 20
GIB = 1 << 30

# Documents
MAX_YAML_BYTES = MIB // 4  # a sweep of hundreds of models has some kilobytes
MAX_YAML_NODES = 100_000  # after its aliases are unfolded
MAX_JSON_BYTES = 512 * MIB  # COCO's training set has 450
MAX_SIDECAR_BYTES = 64 * MIB
MAX_TABLE_BYTES = 256 * MIB  # of labels.csv

# Images
MAX_IMAGE_PIXELS = 1 << 26  # 8192 x 8192
MAX_ASPECT_RATIO = 100  # of an image; its short side is resized to that of the network
MAX_INPUT_PIXELS = 1 << 23  # of a network's input: 3840 x 2160
MAX_IMAGES = 10_000_000  # in one array

# Networks
MAX_CLASSES = 1 << 17  # that a description may ask for; ImageNet has 21,841

# Graphs
MAX_MODEL_BYTES = 2 * GIB - 1  # of a protobuf message
MAX_TENSOR_BYTES = GIB  # of one tensor in a graph
MAX_NODES = 1_000_000  # after functions are unfolded
MAX_CALL_DEPTH = 256  # of functions in each other; C++ libraries walk them on the stack
MAX_SHARED_DATA = 4  # times the size of the files with external data
MAX_FOLDED_BYTES = 64 * MIB  # that constants may take beyond the weights that they are made of
MAX_FEED_BYTES = GIB  # of random images that are measured with

# Kits
MAX_REFERENCE_BYTES = GIB
MAX_BATCH_BYTES = 2 * GIB  # of the images of its largest batch
