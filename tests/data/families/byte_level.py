"""Families whose tokenizers work on bytes: Llama 3, Qwen, Phi-4, and ChatML on a base model.

The templates are written from the formats that the model cards describe; a comment says which rules those are. Texts
are what the cards show for these conversations.
"""

from simpo.data.chat import TEMPLATE_DIR

from .models import KEPT, PAPER_KEPT, PAPER_TRIMMED, TRIMMED, Family, byte_level

# Llama 3 model card, "Meta Llama 3 prompt format": every turn is a role between header tokens, two newlines, the
# trimmed text and <|eot_id|>; the text begins with <|begin_of_text|>. Nothing is said of tools: calls are not written.
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
    "{{ m.content | trim }}{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA_TOKENS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|python_tag|>")

# Llama 3.1 model card, "Prompt format": a system turn always, with cutting knowledge date and today's date (3.2 asks
# the clock); "JSON based tool calling": schemas stand in the first user turn, calls are JSON with `parameters`, results
# are turns of the role ipython, as JSON.
LLAMA_3_1 = """{{- bos_token }}
{%- if not date_string is defined %}{% set date_string = TODAY %}{% endif %}
{%- set said = messages[0].content | trim if messages[0].role == 'system' else '' %}
{%- set turns = messages[1:] if messages[0].role == 'system' else messages %}
{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}
{%- if tools %}{{ 'Environment: ipython\n' }}{% endif %}
{{- 'Cutting Knowledge Date: December 2023\nToday Date: ' + date_string + '\n\n' + said + '<|eot_id|>' }}
{%- for m in turns %}
    {%- if m.tool_calls is defined %}
        {%- set call = m.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "' + call.name + '", ' }}
        {{- '"parameters": ' + call.arguments | tojson + '}<|eot_id|>' }}
    {%- elif m.role == 'tool' %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\n\n' + m.content | tojson + '<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}
        {%- if tools and loop.first %}
            {{- 'Given the following functions, please respond with a JSON for a function call with its proper ' }}
            {{- 'arguments that best answers the given prompt.\n\nRespond in the format {"name": function name, ' }}
            {{- '"parameters": dictionary of argument name and its value}.Do not use variables.\n\n' }}
            {%- for tool in tools %}{{ tool | tojson(indent=4) + '\n\n' }}{% endfor %}
        {%- endif %}
        {{- m.content | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

# Qwen2.5 model card and "Key Concepts" of Qwen's documentation: ChatML, with a default system turn; tools in the system
# turn as the Hermes format has them, calls in <tool_call>, results in user turns.
QWEN_TOOLS = """{%- if tools %}{{ SYSTEM_WITH_TOOLS }}
    {%- for tool in tools %}{{ '\n' + tool | tojson }}{% endfor %}
    {{- '\n</tools>\n\nFor each function call, return a json object with function name and arguments within ' }}
    {{- '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": ' }}
    {{- '<args-json-object>}\n</tool_call><|im_end|>\n' }}"""
QWEN_CALLS = """{%- for call in m.tool_calls %}
            {{- '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson + '}\n</tool_call>' }}
        {%- endfor %}"""
QWEN_RESULTS = """{%- elif m.role == 'tool' %}
        {{- '' if loop.previtem and loop.previtem.role == 'tool' else '<|im_start|>user' }}
        {{- '\n<tool_response>\n' + m.content + '\n</tool_response>' }}
        {{- '' if loop.nextitem and loop.nextitem.role == 'tool' else '<|im_end|>\n' }}"""
TOOLS_HEADER = (
    "# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\nYou are provided with "
    "function signatures within <tools></tools> XML tags:\\n<tools>"
)
QWEN_DEFAULT = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
QWEN_2_5 = (
    "{%- set said = messages[0].content if messages[0].role == 'system' else '" + QWEN_DEFAULT + "' %}"
    + QWEN_TOOLS.replace("SYSTEM_WITH_TOOLS", f"'<|im_start|>system\\n' + said + '\\n\\n{TOOLS_HEADER}'")
    + """{%- else %}{{ '<|im_start|>system\n' + said + '<|im_end|>\n' }}{% endif %}
{%- for m in messages %}
    {%- if m.role == 'assistant' and m.tool_calls %}
        {{- '<|im_start|>assistant' + ('\n' + m.content if m.content else '') }}
        """ + QWEN_CALLS + """{{ '<|im_end|>\n' }}
    """ + QWEN_RESULTS + """
    {%- elif m.role in ('user', 'assistant') %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
)  # fmt: skip

# Qwen3 model card, "Switching between thinking and non-thinking mode" and "Best practices": no default system turn; an
# answer stands behind its <think> block, an empty one if it has none; earlier turns lose theirs; with
# enable_thinking=False the generation prompt ends with an empty block.
QWEN_3 = (
    "{%- set said = messages[0].content if messages[0].role == 'system' else '' %}"
    + QWEN_TOOLS.replace(
        "SYSTEM_WITH_TOOLS", f"'<|im_start|>system\\n' + (said + '\\n\\n' if said else '') + '{TOOLS_HEADER}'"
    )
    + """{%- elif messages[0].role == 'system' %}{{ '<|im_start|>system\n' + said + '<|im_end|>\n' }}{% endif %}
{%- set ns = namespace(last=messages | length - 1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {%- set text = m.content if m.content is string else '' %}
        {%- set thought = '' %}
        {%- if '</think>' in text %}
            {%- set thought = text.split('</think>')[0].split('<think>')[-1].strip('\n') %}
            {%- set text = text.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\n' }}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<think>\n' + thought + '\n</think>\n\n' + text.lstrip('\n') }}
        {%- else %}{{ text }}{% endif %}
        {%- for call in m.tool_calls or [] %}
            {{- '' if loop.first and not text else '\n' }}
            {{- '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson + '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    """ + QWEN_RESULTS + """
    {%- elif m.role == 'user' %}{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}
{%- endif %}"""
)  # fmt: skip

# Phi-4 model card, "Input formats": role and text between <|im_start|>, <|im_sep|> and <|im_end|>, without newlines.
PHI_4 = (
    "{% for m in messages %}{% if m.role in ('system', 'user', 'assistant') %}"
    "{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)

TOOLS_IN_SYSTEM = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function "
    'signatures within <tools></tools> XML tags:\n<tools>\n{"type": "function", "function": {"name": "get_weather", '
    '"description": "Weather now.", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}\n'
    "</tools>\n\nFor each function call, return a json object with function name and arguments within "
    '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
    "</tool_call><|im_end|>\n"
)
QWEN_TOOL_TURNS = (
    "<|im_start|>user\nWeather?<|im_end|>\n<|im_start|>assistant\n<tool_call>\n"
    '{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>\n'
    "<|im_start|>user\n<tool_response>\n7 C\n</tool_response><|im_end|>\n¦<|im_start|>assistant\n"
)

LLAMA_3_FAMILY = Family(
    name="Llama 3",
    tokenizer=byte_level(LLAMA_3, *LLAMA_TOKENS, bos="<|begin_of_text|>", eos="<|eot_id|>", adds_bos=True),
    prompts={
        "single": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhich way is north?<|eot_id|>"
        "¦<|start_header_id|>assistant<|end_header_id|>\n\n",
        "multi": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhich way is north?<|eot_id|>"
        "¦<|start_header_id|>assistant<|end_header_id|>\n\n",
        "system": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhich way is north?<|eot_id|>"
        "¦<|start_header_id|>assistant<|end_header_id|>\n\n",
        "empty system": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhich way is north?<|eot_id|>"
        "¦<|start_header_id|>assistant<|end_header_id|>\n\n",
        "tool": "template leaves a turn out: tool_calls",
    },
    end="<|eot_id|>",
    response="{}<|eot_id|>",
    paper="<|start_header_id|>assistant<|end_header_id|>\n\n{}<|eot_id|>",
    answers=TRIMMED,
    paper_answers=PAPER_TRIMMED,
)

LLAMA_3_1_PROMPTS = {
    "single": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nWhich way is north?<|eot_id|>"
    "¦<|start_header_id|>assistant<|end_header_id|>\n\n",
    "multi": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nWhich way is north?<|eot_id|>"
    "¦<|start_header_id|>assistant<|end_header_id|>\n\n",
    "system": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: 26 Jul 2024\n\nBe kind.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nWhich way is north?"
    "<|eot_id|>¦<|start_header_id|>assistant<|end_header_id|>\n\n",
    "empty system": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December "
    "2023\nToday Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nWhich way is north?"
    "<|eot_id|>¦<|start_header_id|>assistant<|end_header_id|>\n\n",
    "tool": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nEnvironment: ipython\nCutting Knowledge "
    "Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nGiven the "
    "following functions, please respond with a JSON for a function call with its proper arguments that best answers "
    'the given prompt.\n\nRespond in the format {"name": function name, "parameters": dictionary of argument name and '
    "its value}.Do not use variables.\n\n"
    '{\n    "type": "function",\n    "function": {\n        "name": "get_weather",\n'
    '        "description": "Weather now.",\n        "parameters": {\n            "type": "object",\n'
    '            "properties": {\n                "city": {\n                    "type": "string"\n'
    "                }\n            }\n        }\n    }\n}\n\nWeather?<|eot_id|>"
    '<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "get_weather", "parameters": {"city": "Oslo"}}<|eot_id|>'
    '<|start_header_id|>ipython<|end_header_id|>\n\n"7 C"<|eot_id|>¦<|start_header_id|>assistant<|end_header_id|>\n\n',
}

LLAMA_3_1_FAMILIES = [
    Family(
        name=name,
        tokenizer=byte_level(
            LLAMA_3_1.replace("TODAY", today),
            *LLAMA_TOKENS,
            bos="<|begin_of_text|>",
            eos="<|eot_id|>",
            adds_bos=True,
        ),
        prompts=LLAMA_3_1_PROMPTS,
        end="<|eot_id|>",
        response="{}<|eot_id|>",
        # as the published code does it: the answer alone gets a system turn of its own
        paper="<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul "
        "2024\n\n<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n{}<|eot_id|>",
        answers=TRIMMED,
        paper_answers=PAPER_TRIMMED,
    )
    for name, today in (("Llama 3.1", "'26 Jul 2024'"), ("Llama 3.2", "strftime_now('%d %b %Y')"))
]

QWEN_TOKENS = ("<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<think>", "</think>")
QWEN_2_5_FAMILY = Family(
    name="Qwen2.5",
    tokenizer=byte_level(QWEN_2_5, *QWEN_TOKENS[:4], eos="<|im_end|>"),
    prompts={
        "single": "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nWhich way is north?<|im_end|>\n¦<|im_start|>assistant\n",
        "multi": "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
        "<|im_start|>user\nWhich way is north?<|im_end|>\n¦<|im_start|>assistant\n",
        "system": "<|im_start|>system\nBe kind.<|im_end|>\n"
        "<|im_start|>user\nWhich way is north?<|im_end|>\n¦<|im_start|>assistant\n",
        "empty system": "<|im_start|>system\n<|im_end|>\n"
        "<|im_start|>user\nWhich way is north?<|im_end|>\n¦<|im_start|>assistant\n",
        "tool": "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.\n\n"
        + TOOLS_IN_SYSTEM
        + QWEN_TOOL_TURNS,
    },
    end="<|im_end|>",
    response="{}<|im_end|>",
    # as the published code does it: the answer alone gets the default system turn, and a second end
    paper="<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    "<|im_start|>assistant\n{}<|im_end|>\n<|im_end|>",
)

QWEN_3_PROMPTS = {
    "single": "<|im_start|>user\nWhich way is north?<|im_end|>\n¦<|im_start|>assistant\n",
    "multi": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
    "<|im_start|>user\nWhich way is north?<|im_end|>\n¦<|im_start|>assistant\n",
    "system": "<|im_start|>system\nBe kind.<|im_end|>\n"
    "<|im_start|>user\nWhich way is north?<|im_end|>\n¦<|im_start|>assistant\n",
    "empty system": "<|im_start|>system\n<|im_end|>\n"
    "<|im_start|>user\nWhich way is north?<|im_end|>\n¦<|im_start|>assistant\n",
    "tool": "<|im_start|>system\n" + TOOLS_IN_SYSTEM + QWEN_TOOL_TURNS,
}
QWEN_3_FAMILIES = [
    Family(
        name="Qwen3",
        tokenizer=byte_level(QWEN_3, *QWEN_TOKENS, eos="<|im_end|>"),
        prompts=QWEN_3_PROMPTS,
        end="<|im_end|>",
        response="<think>\n\n</think>\n\n{}<|im_end|>",
        paper="<|im_start|>assistant\n{}<|im_end|>\n<|im_end|>",
        answers={**KEPT, "leading newline": "Up."},
    ),
    Family(
        name="Qwen3, thinking off",
        tokenizer=byte_level(QWEN_3, *QWEN_TOKENS, eos="<|im_end|>"),
        prompts={name: text + "<think>\n\n</think>\n\n" for name, text in QWEN_3_PROMPTS.items()},
        end="<|im_end|>",
        response="{}<|im_end|>",
        paper="<|im_start|>assistant\n{}<|im_end|>\n<|im_end|>",
        answers={**KEPT, "leading newline": "Up."},
        arguments={"enable_thinking": False},
    ),
]

PHI_4_FAMILY = Family(
    name="Phi-4",
    # one token is BOS, EOS and padding; nobody writes it before a text
    tokenizer=byte_level(PHI_4, "<|im_start|>", "<|im_sep|>", "<|im_end|>", bos="<|endoftext|>", eos="<|endoftext|>"),
    prompts={
        "single": "<|im_start|>user<|im_sep|>Which way is north?<|im_end|>¦<|im_start|>assistant<|im_sep|>",
        "multi": "<|im_start|>user<|im_sep|>Hi<|im_end|><|im_start|>assistant<|im_sep|>Hello.<|im_end|>"
        "<|im_start|>user<|im_sep|>Which way is north?<|im_end|>¦<|im_start|>assistant<|im_sep|>",
        "system": "<|im_start|>system<|im_sep|>Be kind.<|im_end|>"
        "<|im_start|>user<|im_sep|>Which way is north?<|im_end|>¦<|im_start|>assistant<|im_sep|>",
        "empty system": "<|im_start|>system<|im_sep|><|im_end|>"
        "<|im_start|>user<|im_sep|>Which way is north?<|im_end|>¦<|im_start|>assistant<|im_sep|>",
        "tool": "template leaves a turn out: tool, tool_calls",
    },
    end="<|im_end|>",
    response="{}<|im_end|>",
    paper="<|im_start|>assistant<|im_sep|>{}<|im_end|><|endoftext|>",
    paper_first="<|endoftext|>",
)

CHATML_FAMILY = Family(
    name="ChatML",
    tokenizer=byte_level(
        (TEMPLATE_DIR / "chatml.jinja").read_text(), "<|im_start|>", "<|im_end|>", eos="<|endoftext|>"
    ),
    prompts={**QWEN_3_PROMPTS, "tool": "template leaves a turn out: tool_calls"},
    end="<|im_end|>",
    response="{}<|im_end|>",
    paper="<|im_start|>assistant\n{}<|im_end|>\n<|endoftext|>",
    paper_answers=PAPER_KEPT,
)

FAMILIES = [
    LLAMA_3_FAMILY, *LLAMA_3_1_FAMILIES, QWEN_2_5_FAMILY, *QWEN_3_FAMILIES, PHI_4_FAMILY, CHATML_FAMILY,
]  # fmt: skip
