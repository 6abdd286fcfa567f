"""Continue a text, the likeliest token at a time, by ONNX Runtime: generate.py BUNDLE TEXT

BUNDLE is a folder that `edgekit compile --engine onnxruntime` wrote for this machine, portable or not.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

bundle, text = Path(sys.argv[1]), sys.argv[2]
options = onnxruntime.SessionOptions()
options.log_severity_level = 3  # a cache that is not bound in place is copied, of which the runtime warns each time
if (bundle / "model.edge").exists():  # with edgekit's kernels; without this a portable bundle needs none of it
    options.register_custom_ops_library(str(bundle / "libedgekit_onnxruntime.so"))
session = onnxruntime.InferenceSession(bundle / "model.onnx", options, providers=["CPUExecutionProvider"])
tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
tokenizer.no_truncation()  # which a file may ask for, and padding: both are about batches in training
tokenizer.no_padding()

# A portable graph takes its cache and gives it back; the node with edgekit's kernels keeps it.
feeds = {i.name: np.zeros(i.shape, np.float32) for i in session.get_inputs() if i.name.startswith("past_")}
if not feeds:
    feeds["num_logits_to_keep"] = np.array([1])
tokens, read = tokenizer.encode(text).ids, 0
for _ in range(32):
    feeds |= {"input_ids": np.array([tokens[read:]]), "position": np.array([read])}
    logits, *cache = session.run(None, feeds)
    feeds |= zip([name for name in feeds if name.startswith("past_")], cache, strict=True)
    read = len(tokens)
    tokens.append(int(logits[0, -1].argmax()))
print(tokenizer.decode(tokens))
