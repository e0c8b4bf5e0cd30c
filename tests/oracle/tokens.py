"""Token ids of Hugging Face's tokenizers library. Run in the torch environment: tokens.py MODEL_DIR TEXTS.json"""

import json
import sys

from transformers import PreTrainedTokenizerFast

tokenizer = PreTrainedTokenizerFast(tokenizer_file=f"{sys.argv[1]}/tokenizer.json")
with open(sys.argv[2], encoding="utf-8") as file:
    texts = json.load(file)
print(json.dumps({"ids": [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]}))
