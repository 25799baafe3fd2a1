"""A Llama small enough to be made on the spot: random weights, a tokenizer trained here, a chat template.

It knows nothing, but is a real model in the real formats: vLLM serves it, transformers loads it, TRL trains it. What it
says is noise that stops: at temperature 1 each token is the end with a probability of about 1 in `MEAN_LENGTH`, and a
double quote as often, so that the strings of a JSON reply end by themselves too.
"""

import math
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PROMPTS = Path(__file__).parents[2] / "data/prompts/quickstart.jsonl"
VOCABULARY = 1024
CONTEXT = 8192
MEAN_LENGTH = 40
END = "<|end|>"
PADDING = "<|pad|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
SILENT = (PADDING, *ROLES)
CONTROL = {chr(code) for code in range(32)} - set("\t\n")  # a tab is something a real model writes, a NUL is not

CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|{{ message['role'] }}|>
{{ message['content'] }}<|end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|assistant|>
{% endif -%}
"""


def build(directory: Path, seed: int = 0, width: int = 128, layers: int = 2) -> Path:
    """Write model, tokenizer and chat template (roles: system, user, assistant) to `directory`; return it.

    Two layers of width 128, float32, are 0.5 million parameters; ten of 640 are 42 million, and a second's work for two
    cores is some 1,000 tokens. Another seed gives other weights and the same tokenizer.
    """
    tokenizer = _tokenizer()
    model = _model(tokenizer, seed, width, layers)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(directory)
    model.save_pretrained(directory)
    return directory


def _tokenizer() -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PADDING, END, *ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # every byte is a token: no text is unknown
        show_progress=False,
    )
    bpe.train([str(PROMPTS)], trainer)  # as it stands, JSON and all
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=PADDING,
        additional_special_tokens=list(ROLES),
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
    )


def _model(tokenizer: PreTrainedTokenizerFast, seed: int, width: int, layers: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        _add_bias(model, _bias(tokenizer))
    return model


def _bias(tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """What to add to the otherwise nearly uniform logits, per token."""
    vocabulary = tokenizer.get_vocab()
    bias = torch.zeros(len(vocabulary))
    for token in (END, '"'):
        bias[vocabulary[token]] = math.log(len(vocabulary) / MEAN_LENGTH)
    for token, index in vocabulary.items():
        if set(tokenizer.convert_tokens_to_string([token])) & CONTROL or token in SILENT:
            bias[index] = -30.0
    return bias


def _add_bias(model: LlamaForCausalLM, bias: torch.Tensor) -> None:
    """A constant added to each token's logit, which Llama has no parameter for.

    The first hidden dimension is kept free for it: every embedding has it large and no layer writes to it, so that
    behind the last norm it is sqrt(width) for all tokens, give or take what the other dimensions hold.
    """
    model.model.embed_tokens.weight[:, 0] = 10.0
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[0, :] = 0.0
        layer.mlp.down_proj.weight[0, :] = 0.0
    model.lm_head.weight[:, 0] = bias / math.sqrt(model.config.hidden_size)
