"""Families whose tokenizers are of the SentencePiece kind: Mistral, Zephyr, Gemma, Phi-3.

The templates are written from the formats that the model cards describe; a comment says which rules those are. Texts
are what the cards show for these conversations.
"""

from tokenizers import AddedToken

from simpo.data.chat import TEMPLATE_DIR

from .models import KEPT, PAPER_KEPT, PAPER_TRIMMED, TRIMMED, Family, sentence_piece

# Mistral-7B-Instruct-v0.1 card, "Instruction format": [INST] and [/INST] with spaces around the text, the answer right
# behind, </s> and a space behind it; no system turn.
MISTRAL_1 = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ m.content + eos_token + ' ' }}{% endif %}{% endfor %}"
)
# v0.2, as in the cards of its time ("<s>[INST] Instruction [/INST] Model answer</s>[INST] Follow-up [/INST]"): a space
# before the answer, none behind it; a system text goes before the first instruction.
MISTRAL_2 = (
    "{{ bos_token }}{% set first = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}"
    "{% for m in (messages[1:] if messages[0].role == 'system' else messages) %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('After the optional system message, conversation roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + (first if loop.first else '') + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
# v0.3 card and "Tokenization" of Mistral's documentation, version 3: control tokens of their own, no space before
# [/INST]; tools before the last instruction, a system text inside it, but only where that is the last turn.
MISTRAL_3 = """{{- bos_token }}
{%- set said = messages[0].content if messages[0].role == 'system' else none %}
{%- set turns = messages[1:] if messages[0].role == 'system' else messages %}
{%- set asked = turns | selectattr('role', 'equalto', 'user') | list %}
{%- set ns = namespace(count=0) %}
{%- for m in turns if m.role != 'tool' and m.tool_calls is not defined %}
    {%- if (m.role == 'user') != (ns.count % 2 == 0) %}
        {{- raise_exception('After the optional system message, conversation roles must alternate') }}
    {%- endif %}
    {%- set ns.count = ns.count + 1 %}
{%- endfor %}
{%- for m in turns %}
    {%- if m.role == 'user' %}
        {%- if tools and m == asked[-1] %}{{ '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}
        {{- '[INST] ' + (said + '\n\n' if loop.last and said is not none else '') + m.content + '[/INST]' }}
    {%- elif m.tool_calls is defined %}
        {{- '[TOOL_CALLS] [' }}
        {%- for call in m.tool_calls %}
            {{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' + ('' if loop.last else ', ') }}
        {%- endfor %}
        {{- ']' + eos_token }}
    {%- elif m.role == 'tool' %}
        {{- '[TOOL_RESULTS] {"content": ' + m.content + ', "call_id": "' + m.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}{{ ' ' + m.content | trim + eos_token }}{% endif %}
{%- endfor %}"""
MISTRAL_3_TOKENS = (
    "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]",
)  # fmt: skip

# zephyr-7b-beta card, "Intended uses": role on a line of its own, the text, </s>, a newline. Other roles are skipped.
ZEPHYR = (
    "{% for m in messages %}{% if m.role in ('system', 'user', 'assistant') %}"
    "{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)

# Gemma formatting ("Formatting for instruction tuning") and the Gemma 2 card: user and model turns, trimmed; no system.
GEMMA_2 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
    "{{ m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# Gemma 3 card: the same, and a system text stands in the first user turn, two newlines before the question.
GEMMA_3 = (
    "{{ bos_token }}{% set first = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}"
    "{% for m in (messages[1:] if messages[0].role == 'system' else messages) %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + (first if loop.first else '') }}"
    "{{ m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
GEMMA_TOKENS = (
    "<start_of_turn>", "<end_of_turn>",
    *(AddedToken("\n" * count, special=False, normalized=False) for count in (1, 2, 3)),
)  # fmt: skip

# Phi-3-mini card, "Chat Format": <|user|>, text, <|end|>; without a generation prompt the text ends with EOS. Its role
# tokens take the white space behind them (rstrip). Other roles are skipped.
PHI_3 = (
    "{% for m in messages %}{% if m.role in ('system', 'user', 'assistant') %}"
    "{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
PHI_3_TOKENS = tuple(
    AddedToken(text, special=True, rstrip=True) for text in ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
)

FAMILIES = [
    Family(
        name="Mistral 0.1",
        tokenizer=sentence_piece(MISTRAL_1, spaces="prepend", bos="<s>", eos="</s>", adds_bos=True),
        prompts={
            "single": "<s>[INST] Which way is north? [/INST]",
            "multi": "<s>[INST] Hi [/INST]Hello.</s> [INST] Which way is north? [/INST]",
            "system": "template fails: Conversation roles must alternate",
            "empty system": "template fails: Conversation roles must alternate",
            "tool": "template fails: ",
        },
        end="</s>",
        response="{}</s>",
        paper="template fails: Conversation roles must alternate",
    ),
    Family(
        name="Mistral 0.2",
        tokenizer=sentence_piece(MISTRAL_2, spaces="prepend", bos="<s>", eos="</s>", adds_bos=True),
        prompts={
            "single": "<s>[INST] Which way is north? [/INST]",
            "multi": "<s>[INST] Hi [/INST] Hello.</s>[INST] Which way is north? [/INST]",
            "system": "<s>[INST] Be kind.\n\nWhich way is north? [/INST]",
            "empty system": "<s>[INST] \n\nWhich way is north? [/INST]",
            "tool": "template fails: ",
        },
        end="</s>",
        response=" {}</s>",
        paper="template fails: After the optional system message, conversation roles must alternate",
    ),
    Family(
        name="Mistral 0.3",
        tokenizer=sentence_piece(MISTRAL_3, *MISTRAL_3_TOKENS, spaces="first", bos="<s>", eos="</s>", adds_bos=True),
        prompts={
            "single": "<s>[INST] Which way is north?[/INST]",
            "multi": "<s>[INST] Hi[/INST] Hello.</s>[INST] Which way is north?[/INST]",
            "system": "<s>[INST] Be kind.\n\nWhich way is north?[/INST]",
            "empty system": "<s>[INST] \n\nWhich way is north?[/INST]",
            "tool": '<s>[AVAILABLE_TOOLS] [{"type": "function", "function": {"name": "get_weather", "description": '
            '"Weather now.", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}]'
            '[/AVAILABLE_TOOLS][INST] Weather?[/INST][TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": '
            '"Oslo"}, "id": "abcdefghi"}]</s>[TOOL_RESULTS] {"content": 7 C, "call_id": "abcdefghi"}[/TOOL_RESULTS]',
        },
        end="</s>",
        response=" {}</s>",
        paper="template fails: After the optional system message, conversation roles must alternate",
        answers=TRIMMED,
    ),
    Family(
        name="Zephyr",
        # the tokenizer writes BOS, the template does not
        tokenizer=sentence_piece(ZEPHYR, spaces="prepend", bos="<s>", eos="</s>", adds_bos=True),
        prompts={
            "single": "<s><|user|>\nWhich way is north?</s>\n¦<|assistant|>\n",
            "multi": "<s><|user|>\nHi</s>\n<|assistant|>\nHello.</s>\n<|user|>\nWhich way is north?</s>\n"
            "¦<|assistant|>\n",
            "system": "<s><|system|>\nBe kind.</s>\n<|user|>\nWhich way is north?</s>\n¦<|assistant|>\n",
            "empty system": "<s><|system|>\n</s>\n<|user|>\nWhich way is north?</s>\n¦<|assistant|>\n",
            "tool": "template leaves a turn out: tool, tool_calls",
        },
        end="</s>",
        response="{}</s>",
        # behind a special token this tokenizer puts a space before the next text
        paper="<|assistant|>\n{}</s> \n</s>",
        paper_answers={**PAPER_KEPT, "end inside": "Up.</s>  More."},
    ),
    Family(
        name="Gemma 2",
        tokenizer=sentence_piece(GEMMA_2, *GEMMA_TOKENS, spaces="none", bos="<bos>", eos="<eos>", adds_bos=True),
        prompts={
            "single": "<bos><start_of_turn>user\nWhich way is north?<end_of_turn>\n¦<start_of_turn>model\n",
            "multi": "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n"
            "<start_of_turn>user\nWhich way is north?<end_of_turn>\n¦<start_of_turn>model\n",
            "system": "template fails: System role not supported",
            "empty system": "template fails: System role not supported",
            "tool": "template fails: Conversation roles must alternate",
        },
        end="<end_of_turn>",
        response="{}<end_of_turn>",
        paper="template fails: Conversation roles must alternate",
        answers=TRIMMED,
    ),
    Family(
        name="Gemma 3",
        tokenizer=sentence_piece(GEMMA_3, *GEMMA_TOKENS, spaces="none", bos="<bos>", eos="<eos>", adds_bos=True),
        prompts={
            "single": "<bos><start_of_turn>user\nWhich way is north?<end_of_turn>\n¦<start_of_turn>model\n",
            "multi": "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n"
            "<start_of_turn>user\nWhich way is north?<end_of_turn>\n¦<start_of_turn>model\n",
            "system": "<bos><start_of_turn>user\nBe kind.\n\nWhich way is north?<end_of_turn>\n¦<start_of_turn>model\n",
            "empty system": "<bos><start_of_turn>user\n\n\nWhich way is north?<end_of_turn>\n¦<start_of_turn>model\n",
            "tool": "template fails: Conversation roles must alternate",
        },
        end="<end_of_turn>",
        response="{}<end_of_turn>",
        paper="template fails: Conversation roles must alternate",
        answers=TRIMMED,
    ),
    Family(
        name="Phi-3",
        # its configuration says add_bos_token: false
        tokenizer=sentence_piece(PHI_3, *PHI_3_TOKENS, spaces="prepend", bos="<s>", eos="<|endoftext|>"),
        prompts={
            "single": "<|user|>\nWhich way is north?<|end|>\n¦<|assistant|>\n",
            "multi": "<|user|>\nHi<|end|>\n<|assistant|>\nHello.<|end|>\n<|user|>\nWhich way is north?<|end|>\n"
            "¦<|assistant|>\n",
            "system": "<|system|>\nBe kind.<|end|>\n<|user|>\nWhich way is north?<|end|>\n¦<|assistant|>\n",
            "empty system": "<|system|>\n<|end|>\n<|user|>\nWhich way is north?<|end|>\n¦<|assistant|>\n",
            "tool": "template leaves a turn out: tool, tool_calls",
        },
        end="<|end|>",
        # white space behind a role is gone, and the tokenizer puts a space there itself
        response=" {}<|end|>",
        paper="<|assistant|> {}<|end|><|endoftext|>",
        answers={**KEPT, "leading space": "Up.", "leading newline": "Up."},
        paper_answers={
            **PAPER_KEPT,
            "leading space": "Up.",
            "leading newline": "Up.",
            "end inside": "Up.<|end|> More.",
        },
        paper_first="<s>",
        paper_last="<|endoftext|>",
    ),
]

# `tokenization: paper` of Mistral and Gemma, whose own templates refuse an answer alone: the published runs' templates,
# as they are shipped (what these write is tested in test_templates.py). Mistral 0.1 has the tokenizer of 0.2, and
# Gemma 3 that of Gemma 2. Texts are stripped, Mistral's answers stand between spaces, a system text goes before the
# first question.
PUBLISHED_MISTRAL = (TEMPLATE_DIR / "mistral.jinja").read_text()
PUBLISHED_GEMMA = (TEMPLATE_DIR / "gemma-2.jinja").read_text()
PUBLISHED_MISTRAL_PROMPTS = {
    "single": "<s>[INST] Which way is north? [/INST]",
    "multi": "<s>[INST] Hi [/INST] Hello. </s>[INST] Which way is north? [/INST]",
    "system": "<s>[INST] Be kind.\n\nWhich way is north? [/INST]",
    "empty system": "<s>[INST] Which way is north? [/INST]",
    "tool": "template fails: turn 3 has role tool; expected user or assistant",
}

FAMILIES += [
    Family(
        name="Mistral 0.2, published",
        # the tokenizer writes BOS, the template does not
        tokenizer=sentence_piece(PUBLISHED_MISTRAL, spaces="prepend", bos="<s>", eos="</s>", adds_bos=True),
        prompts=PUBLISHED_MISTRAL_PROMPTS,
        end="</s>",
        response=" {} </s>",
        paper=" {} </s>",
        answers={**TRIMMED, "end inside": " Up.</s>"},
        # behind a special token this tokenizer puts a space before the next text
        paper_answers={**PAPER_TRIMMED, "end inside": "Up.</s>  More."},
    ),
    Family(
        name="Mistral 0.3, published",
        tokenizer=sentence_piece(
            PUBLISHED_MISTRAL, *MISTRAL_3_TOKENS, spaces="first", bos="<s>", eos="</s>", adds_bos=True
        ),
        prompts=PUBLISHED_MISTRAL_PROMPTS,
        end="</s>",
        response=" {} </s>",
        paper=" {} </s>",
        answers={**TRIMMED, "end inside": " Up.</s>"},
        paper_answers=PAPER_TRIMMED,
    ),
    Family(
        name="Gemma 2, published",
        tokenizer=sentence_piece(
            PUBLISHED_GEMMA, *GEMMA_TOKENS, spaces="none", bos="<bos>", eos="<eos>", adds_bos=True
        ),
        prompts={
            "single": "<bos><start_of_turn>user\nWhich way is north?<end_of_turn>\n¦<start_of_turn>model\n",
            "multi": "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n"
            "<start_of_turn>user\nWhich way is north?<end_of_turn>\n¦<start_of_turn>model\n",
            "system": "<bos><start_of_turn>user\nBe kind.\n\nWhich way is north?<end_of_turn>\n¦<start_of_turn>model\n",
            "empty system": "<bos><start_of_turn>user\nWhich way is north?<end_of_turn>\n¦<start_of_turn>model\n",
            "tool": "template fails: turn 3 has role tool; expected user or assistant",
        },
        end="<end_of_turn>",
        response="{}<end_of_turn>",
        paper="<start_of_turn>model\n{}<end_of_turn>\n<eos>",
        answers=TRIMMED,
        paper_answers=PAPER_TRIMMED,
    ),
]
