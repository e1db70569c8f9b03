import numpy as np
import pytest
import torch
from PIL import Image

from mmrl.models.hermes import schema
from mmrl.models.text import control_id
from mmrl.tools.zoom import Zoom
from mmrl.train.engine import TorchEngine
from mmrl.types import MediaSpan, Message, Part, Row, Tokens, ToolCall

CALL = ToolCall(name="image_zoom_in_tool", arguments={"bbox_2d": [1, 2, 3, 4]})


def user(*parts):
    return Message(role="user", parts=tuple(Part(text=p) if isinstance(p, str) else Part(media=p) for p in parts))


def template_ids(checkpoint, messages, sizes, tools, generation):
    """What the exported chat template gives, with each image's placeholder repeated as its processor would."""
    tokenizer, pad = checkpoint.tokenizer, control_id(checkpoint.tokenizer, "<|image_pad|>")
    text = checkpoint.tokenizer.apply_chat_template(
        messages,
        tools=tools,
        add_generation_prompt=generation,
        tokenize=False,
        chat_template=checkpoint.family.chat_template,
    )
    left = list(sizes)
    ids = []
    for token in tokenizer(text, add_special_tokens=False).input_ids:
        ids += [pad] * left.pop(0) if token == pad else [token]
    assert not left
    return ids


def as_template(message):
    content = [{"type": "image"} if p.media is not None else {"type": "text", "text": p.text} for p in message.parts]
    calls = [
        {"type": "function", "function": {"name": c.name, "arguments": dict(c.arguments)}} for c in message.tool_calls
    ]
    body = {
        "role": message.role,
        "content": "".join(p.text or "" for p in message.parts)
        if not any(p.media is not None for p in message.parts)
        else content,
    }
    return body | ({"tool_calls": calls} if calls else {})


@pytest.mark.parametrize("system", ["", "Look closer."])
@pytest.mark.parametrize("tools", [(), (Zoom(),), (Zoom(), Zoom(name="other"))])
def test_a_prompt_has_the_ids_of_the_exported_template(checkpoint, picture, system, tools):
    media = [picture(0), picture(1, 112, 56)]
    messages = [Message(role="system", parts=(Part(text=system),))] if system else []
    messages += [
        user(0, "What is ", 1, " this?\n"),
        Message(role="assistant", parts=(Part(text="A cat"),)),
        user("Sure?"),
    ]
    ours = checkpoint.family.encode_prompt(messages, media, tools)
    theirs = template_ids(
        checkpoint, [as_template(m) for m in messages], [4, 8], [schema(tool) for tool in tools] or None, True
    )
    assert list(ours.ids) == theirs


def test_an_episode_reads_as_the_exported_template_writes_it(checkpoint, picture):
    family, media = checkpoint.family, [picture(0), picture(1)]
    turn = Message(role="assistant", parts=(Part(text="Let me look."),), tool_calls=(CALL,))
    observation = Message(role="tool", parts=(Part(media=0), Part(text="a crop")))
    answer = Message(role="assistant", parts=(Part(text="<answer>7</answer>"),))
    prompt = family.encode_prompt([user(0, "Which?")], media[:1], (Zoom(),))
    ours = (
        *prompt.ids,
        *family.encode_turn(turn),
        *family.extend(observation, media[1:], closed=True).ids,
        *family.encode_turn(answer),
    )
    conversation = [as_template(m) for m in (user(0, "Which?"), turn, observation, answer)]
    theirs = template_ids(checkpoint, conversation, [4, 4], [schema(Zoom())], False)
    # Text, not ids: a tokenizer may join a turn's first token with its header, which sampled ids never are.
    assert checkpoint.tokenizer.decode(ours) + "\n" == checkpoint.tokenizer.decode(theirs)


def test_a_turn_cut_off_by_its_limit_is_closed_before_the_observation(checkpoint):
    family = checkpoint.family
    observation = Message(role="tool", parts=(Part(text="Error"),))
    closed = family.extend(observation, [], closed=True).ids
    assert family.extend(observation, [], closed=False).ids == (family.eos_ids[0], *closed)


def test_control_tokens_in_a_users_text_stay_text(checkpoint):
    family = checkpoint.family
    text = "<|im_end|><|image_pad|><|vision_start|>\ud800"
    ids = family.encode_prompt([user(text)], [], ()).ids
    assert ids.count(control_id(family.tokenizer, "<|image_pad|>")) == 0
    assert ids.count(family.eos_ids[0]) == 1  # the template's own
    assert "<|image_pad|>" in family.decode(ids)


def test_patches_equal_those_of_the_checkpoints_image_processor(checkpoint, picture):
    medium = picture(3, 112, 56)
    size = {"shortest_edge": 56 * 112, "longest_edge": 56 * 112}
    theirs = checkpoint.processor.image_processor(Image.fromarray(medium.data), size=size, return_tensors="pt")
    assert checkpoint.family.grid(medium) == (1, 2, 4)
    assert theirs.image_grid_thw.tolist() == [[1, 4, 8]]
    torch.testing.assert_close(checkpoint.family.patching.rows(medium), theirs.pixel_values, rtol=0, atol=1e-5)


def test_images_encoded_together_equal_images_encoded_alone(checkpoint, picture):
    media = [picture(0), picture(1, 112, 56), picture(2)]
    with torch.no_grad():
        together = checkpoint.family.encode_media(checkpoint.model, media)
        alone = [checkpoint.family.encode_media(checkpoint.model, [medium])[0] for medium in media]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_a_seen_size_that_is_no_multiple_is_named(checkpoint, picture):
    with pytest.raises(ValueError, match="60 x 56 is not a multiple of 28"):
        checkpoint.family.grid(picture(0, 60, 56))


def test_log_probs_equal_those_of_transformers_own_forward(checkpoint, picture):
    family, model = checkpoint.family, checkpoint.model
    media = {m.key: m for m in (picture(0), picture(1, 112, 56))}
    rng = np.random.default_rng(0)
    rows = [
        random_row(family, rng, list(media.values())[:count], length) for count, length in ((2, 30), (1, 12), (0, 21))
    ]
    engine = TorchEngine(model, family, None, micro_batch_tokens=10**6, max_grad_norm=1.0)
    engine.temperature = 0.7
    ours = engine.logprobs(rows, media)
    theirs = torch.cat([their_logprobs(checkpoint, row, media, 0.7) for row in rows])
    torch.testing.assert_close(ours, theirs.double(), rtol=0, atol=1e-5)


def random_row(family, rng, media, length):
    ids = rng.integers(0, 200, 3).tolist()
    spans = []
    for medium in media:
        grid = family.grid(medium)
        spans.append(MediaSpan(key=medium.key, start=len(ids), length=int(np.prod(grid)), grid=grid))
        ids += [control_id(family.tokenizer, "<|image_pad|>")] * spans[-1].length
        ids += rng.integers(0, 200, 2).tolist()
    ids += rng.integers(0, 200, length).tolist()
    target = np.arange(len(ids) - length, len(ids))
    ids_T = np.array(ids)
    positions = family.positions(Tokens(ids=tuple(ids), spans=tuple(spans)))
    return Row(ids_T=ids_T, positions_3T=positions, spans=tuple(spans), source_N=target - 1, target_N=ids_T[target])


def their_logprobs(checkpoint, row, media, temperature):
    """transformers' own forward from pixels, with its own positions and merging of features."""
    family = checkpoint.family
    ids_1T = torch.tensor(row.ids_T)[None]
    inputs = {}
    if row.spans:
        shown = [media[span.key] for span in row.spans]
        sizes = [(1, m.data.shape[0] // family.patching.patch, m.data.shape[1] // family.patching.patch) for m in shown]
        inputs = {
            "pixel_values": torch.cat([family.patching.rows(m) for m in shown]),
            "image_grid_thw": torch.tensor(sizes),
            "mm_token_type_ids": (ids_1T == control_id(family.tokenizer, "<|image_pad|>")).int(),
        }
    with torch.no_grad():
        logits = checkpoint.model(input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T), **inputs).logits[0]
    logits[:, list(family.reserved_ids)] = float("-inf")
    logprobs = torch.log_softmax(logits[torch.tensor(row.source_N)] / temperature, -1)
    return logprobs.gather(1, torch.tensor(row.target_N)[:, None])[:, 0]
