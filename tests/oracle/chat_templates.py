"""What apply_chat_template of transformers makes of conversations.

Run by the tests in the torch environment: chat_templates.py CONVERSATIONS.json DIRECTORY ...
"""

import json
import sys
from pathlib import Path

from transformers import AutoTokenizer

conversations = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
found = {}
for directory in sys.argv[2:]:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    found[Path(directory).name] = [
        tokenizer.apply_chat_template(messages, add_generation_prompt=True) for messages in conversations
    ]
print(json.dumps(found))
