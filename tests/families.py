"""Tiny random checkpoints of every supported family, written as mmrl writes them."""

from transformers import (
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    WhisperFeatureExtractor,
)

from mmrl.demo import tiny_model
from mmrl.demo.tiny_model import TEXT, VISION, save, text_config, train_tokenizer

CORPUS = ["user\n", "assistant\n", "system\nYou see and hear.", "What is this?", "<answer>7</answer>", "12.5 seconds>"]
VISION_IDS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
QWEN3_VISION = {
    "depth": 3,
    "hidden_size": VISION,
    "intermediate_size": 2 * VISION,
    "num_heads": 4,
    "out_hidden_size": TEXT,
    "num_position_embeddings": 64,
    "initializer_range": 0.08,
}


def write(name, path):
    """Write the tiny checkpoint of a family into the folder `path`."""
    WRITERS[name](path)
    return path


def write_qwen2_vl(path):
    tokenizer = train_tokenizer(CORPUS, 400)
    vision = {"depth": 2, "embed_dim": VISION, "num_heads": 4, "hidden_size": TEXT, "mlp_ratio": 2}
    config = Qwen2VLConfig(text_config=text_config(tokenizer), vision_config=vision, **ids(tokenizer, VISION_IDS))
    processor = Qwen2VLProcessor(Qwen2VLImageProcessor(), tokenizer, Qwen2VLVideoProcessor())
    save("qwen2_vl", tiny_model.random_model(Qwen2VLForConditionalGeneration, config, 0), config, processor, path)


def write_qwen3_vl(path):
    tokenizer = train_tokenizer(CORPUS, 400)
    text = text_config(tokenizer) | {"head_dim": 32}
    text["rope_parameters"] |= {"mrope_section": [8, 4, 4], "mrope_interleaved": True}
    vision = QWEN3_VISION | {"deepstack_visual_indexes": [0, 1]}
    config = Qwen3VLConfig(text_config=text, vision_config=vision, **ids(tokenizer, VISION_IDS))
    processor = Qwen3VLProcessor(qwen3_images(), tokenizer, Qwen3VLVideoProcessor())
    save("qwen3_vl", tiny_model.random_model(Qwen3VLForConditionalGeneration, config, 0), config, processor, path)


def write_qwen3_5(path):
    tokenizer = train_tokenizer(CORPUS, 400)
    text = text_config(tokenizer) | {
        "head_dim": 32,
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    }
    text["rope_parameters"] |= {"mrope_section": [2, 1, 1], "mrope_interleaved": True, "partial_rotary_factor": 0.25}
    config = Qwen3_5Config(text_config=text, vision_config=QWEN3_VISION, **ids(tokenizer, VISION_IDS))
    processor = Qwen3VLProcessor(qwen3_images(), tokenizer, Qwen3VLVideoProcessor())
    save("qwen3_5", tiny_model.random_model(Qwen3_5ForConditionalGeneration, config, 0), config, processor, path)


def write_qwen2_audio(path):
    names = {"audio_token": "<|AUDIO|>", "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>"}
    tokenizer = train_tokenizer(CORPUS, 400, **names)
    text = text_config(tokenizer) | {"model_type": "qwen2", "rope_parameters": {"rope_type": "default"}}
    audio = {
        "d_model": VISION,
        "encoder_layers": 2,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 2 * VISION,
        "num_mel_bins": 128,
    }
    config = Qwen2AudioConfig(
        text_config=text, audio_config=audio, audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>")
    )
    processor = Qwen2AudioProcessor(WhisperFeatureExtractor(feature_size=128), tokenizer)
    save("qwen2_audio", tiny_model.random_model(Qwen2AudioForConditionalGeneration, config, 0), config, processor, path)


def write_qwen2_5_vl(path):
    tiny_model.write_qwen2_5_vl(train_tokenizer(CORPUS, 400), path, seed=0)


def write_qwen2_5_omni(path):
    tiny_model.write_qwen2_5_omni(train_tokenizer(CORPUS, 400, **tiny_model.OMNI_TOKENS), path, seed=0)


def qwen3_images():
    half = [0.5, 0.5, 0.5]
    return Qwen2VLImageProcessor(patch_size=16, image_mean=half, image_std=half)


def ids(tokenizer, names):
    return {key: tokenizer.convert_tokens_to_ids(token) for key, token in names.items()}


WRITERS = {
    "qwen2_vl": write_qwen2_vl,
    "qwen2_5_vl": write_qwen2_5_vl,
    "qwen3_vl": write_qwen3_vl,
    "qwen3_5": write_qwen3_5,
    "qwen2_audio": write_qwen2_audio,
    "qwen2_5_omni": write_qwen2_5_omni,
}
