import json
import math
import os

import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf

from frostline import exporting
from frostline.exporting import versions

# Keras 3.15 hands tensors to NumPy 2 in a way that NumPy deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
