"""A stand-in for AI-Toolkit's source, which no test machine has: written into a folder as a checkout of it would lie there.

It is ours from the first line to the last. What it keeps of the real one is the contract that our engine rests on: which
hook follows which, what is where, what is printed, and what goes wrong without a word (a batch that does not fit into
memory is left out, a loss that is no number becomes zero). It really trains, one LoRA on a FLUX in diffusers' layout.
"""

import sys
from pathlib import Path

PACKAGES = ("toolkit", "jobs", "extensions_built_in")

BASE_JOB = """
class BaseJob:
    def __init__(self, config):
        self.raw_config, self.config = config, config["config"]
        self.name = self.config["name"]

    def load_processes(self, process_dict):
        self.process = [
            process_dict[process["type"]](number, self, process)
            for number, process in enumerate(self.config["process"])
        ]
"""

ACCELERATOR = """
from accelerate import Accelerator

global_accelerator = None


def get_accelerator():
    global global_accelerator
    if global_accelerator is None:
        global_accelerator = Accelerator()
    return global_accelerator
"""

TRAIN_TOOLS = '''
def encode_prompts_flux(
    tokenizer, text_encoder, prompts, truncate=True, max_length=None, dropout_prob=0.0, attn_mask=False
):
    """Sequence embeddings and pooled ones."""
    def tokens(of, length):
        given = of(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return given.input_ids

    pooled = text_encoder[0](tokens(tokenizer[0], tokenizer[0].model_max_length)).pooler_output
    embeds = text_encoder[1](tokens(tokenizer[1], max_length or 512))[0]
    print(f"{len(prompts)} prompt of {embeds.shape[1]} tokens")
    return embeds, pooled
'''

LORA_SPECIAL = '''
import torch


class LoRAModule(torch.nn.Module):
    def __init__(self, network, org_module, rank):
        super().__init__()
        self.network, self.org_module, self.scale = [network], [org_module], 1.0
        self.lora_down = torch.nn.Linear(org_module.in_features, rank, bias=False)
        self.lora_up = torch.nn.Linear(rank, org_module.out_features, bias=False)
        torch.nn.init.zeros_(self.lora_up.weight)

    def apply_to(self):
        self.org_forward = self.org_module[0].forward
        self.org_module[0].forward = self.forward

    def _set_runtime_scale(self, value):
        self.scale = float(value)

    def forward(self, x):
        out = self.org_forward(x)
        network = self.network[0]
        if not network.is_active:
            return out
        return out + self.lora_up(self.lora_down(x)) * (network.multiplier * self.scale)


class LoRASpecialNetwork(torch.nn.Module):
    """Acts between __enter__ and __exit__ only."""

    def __init__(self, unet, rank, multiplier=1.0, only_if_contains=None):
        super().__init__()
        self.multiplier, self.is_active, self.forced_to = multiplier, False, []
        self.unet_loras = []
        for name, module in unet.named_modules():
            full = f"transformer.{name}"
            if isinstance(module, torch.nn.Linear) and any(word in full for word in only_if_contains):
                self.unet_loras.append(LoRAModule(self, module, rank))
                self.add_module(full.replace(".", "$$"), self.unet_loras[-1])

    def apply_to(self):
        for lora in self.unet_loras:
            lora.apply_to()

    def get_all_modules(self):
        return self.unet_loras

    def force_to(self, device, dtype):
        self.forced_to.append(device)
        self.to(device, dtype)

    def __enter__(self):
        self.is_active = True

    def __exit__(self, exc_type, exc_value, tb):
        self.is_active = False
'''

EMA = """
import torch


class ExponentialMovingAverage:
    def __init__(self, parameters, decay):
        self.parameters, self.decay = list(parameters), decay
        self.shadow_params = [parameter.clone().detach() for parameter in self.parameters]
        self.collected_params, self._is_train_mode = None, True

    @torch.no_grad()
    def update(self):
        for shadow, parameter in zip(self.shadow_params, self.parameters):
            shadow.lerp_(parameter, 1 - self.decay)

    @torch.no_grad()
    def eval(self):
        if self._is_train_mode:
            self.collected_params = [parameter.clone() for parameter in self.parameters]
            for shadow, parameter in zip(self.shadow_params, self.parameters):
                parameter.copy_(shadow)
            self._is_train_mode = False

    @torch.no_grad()
    def train(self):
        if not self._is_train_mode:
            for collected, parameter in zip(self.collected_params, self.parameters):
                parameter.copy_(collected)
            self._is_train_mode = True

    def state_dict(self):
        return {"shadow_params": self.shadow_params, "collected_params": self.collected_params}

    def load_state_dict(self, state_dict):
        self.shadow_params = [shadow.clone() for shadow in state_dict["shadow_params"]]
"""

DATALOADER = '''
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tqdm import tqdm


class Batch:
    def __init__(self, file_items):
        self.file_items = file_items
        self.latents = torch.stack([item.latents for item in file_items])


class Loader:
    """Batches of one dataset each; the last one of a dataset is as small as what is left."""

    def __init__(self, datasets, batch_size, sd):
        self.batch_size, self.file_lists = batch_size, []
        for dataset in datasets:
            for resolution in dataset["resolution"]:
                config = SimpleNamespace(**{**dataset, "resolution": resolution})
                self.file_lists.append(files_of(config))
        for file_list in self.file_lists:
            cache_latents(file_list, sd)
            cache_text_embeddings(file_list, sd)

    def __iter__(self):
        batches = []
        for file_list in self.file_lists:
            order = random.sample(file_list, len(file_list))
            batches += [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        random.shuffle(batches)
        return (Batch(items) for items in batches)


def files_of(config):
    images = sorted(path for path in Path(config.folder_path).iterdir() if path.suffix in {".png", ".jpg"})
    return [
        SimpleNamespace(path=path, dataset_config=config, caption=path.with_suffix(".txt").read_text())
        for path in images
        for _ in range(config.num_repeats)
    ]


def cache_latents(file_list, sd):
    bar = tqdm(total=len(file_list), desc="Caching latents to disk")
    for item in file_list:
        side = item.dataset_config.resolution
        cached = item.path.parent / "_latent_cache" / f"{item.path.stem}-{side}.safetensors"
        if not cached.exists():
            cached.parent.mkdir(exist_ok=True)
            image = Image.open(item.path).convert("RGB").resize((side, side))
            pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)
            save_file({"latents": sd.encode_images(pixels[None])[0]}, cached)
            print(f"encoded {item.path.name}")
        item.latents = load_file(cached)["latents"]
        bar.update(1)
    bar.close()


def cache_text_embeddings(file_list, sd):
    for item in tqdm(file_list, desc="Caching text embeddings to disk"):
        item.prompt = sd.encode_prompt([item.caption])
'''

MODEL = '''
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file

from toolkit import train_tools
from toolkit.lora_special import LoRASpecialNetwork


class Scheduler:
    """Noise levels from 1000 down to 1."""

    def set_timesteps(self, num_timesteps, device):
        self.timesteps = torch.linspace(1000, 1, num_timesteps, device=device)

    def set_train_timesteps(
        self, num_timesteps, device, timestep_type="linear", latents=None, patch_size=1
    ):
        self.set_timesteps(num_timesteps, device)
        return self.timesteps


class StableDiffusion:
    def __init__(self, device, model_config, dtype, noise_scheduler):
        self.device_torch, self.torch_dtype = torch.device(device), torch.float32
        self.model_config, self.noise_scheduler = model_config, noise_scheduler
        self.assistant_lora = self.network = None
        self.state = None

    def load_model(self):
        path = self.model_config.name_or_path
        self.unet = FluxTransformer2DModel.from_pretrained(path, subfolder="transformer", dtype=torch.float32)
        parts = FluxPipeline.from_pretrained(path, transformer=None, dtype=torch.float32)
        self.vae = parts.vae
        self.tokenizer = [parts.tokenizer, parts.tokenizer_2]
        self.text_encoder = [parts.text_encoder, parts.text_encoder_2]
        if getattr(self.model_config, "assistant_lora_path", None):
            self.load_assistant(load_file(self.model_config.assistant_lora_path))

    def load_assistant(self, weights):
        """Merge a LoRA into the model; a network that takes it back is there, and inactive."""
        keys = sorted(key for key in weights if key.endswith("lora_A.weight"))
        names = [key.removeprefix("transformer.").removesuffix(".lora_A.weight") for key in keys]
        rank = weights[keys[0]].shape[0]
        lora = LoRASpecialNetwork(
            self.unet, rank, multiplier=-1.0, only_if_contains=[f".{name}" for name in names]
        )
        with torch.no_grad():
            for name in names:
                (module,) = [m for m in lora.unet_loras if m.org_module[0] is self.unet.get_submodule(name)]
                down, up = (weights[f"transformer.{name}.lora_{side}.weight"] for side in "AB")
                module.lora_down.weight.copy_(down)
                module.lora_up.weight.copy_(up)
                module.org_module[0].weight.add_(up @ down)
        lora.apply_to()
        lora.requires_grad_(False)
        self.assistant_lora = lora

    def set_device_state(self, state):
        self.state = state

    @torch.no_grad()
    def encode_images(self, pixels):
        latents = self.vae.encode(pixels).latent_dist.sample()
        return (latents - self.vae.config.shift_factor) * self.vae.config.scaling_factor

    @torch.no_grad()
    def encode_prompt(self, prompt):
        return train_tools.encode_prompts_flux(
            self.tokenizer, self.text_encoder, prompt, truncate=True, max_length=512, dropout_prob=0.0
        )

    def add_noise(self, latents, noise, timesteps):
        level = (timesteps / 1000).view(-1, 1, 1, 1)
        return (1 - level) * latents + level * noise

    def predict_noise(self, latents, embeds, pooled, timesteps, guidance_scale):
        count, channels, height, width = latents.shape
        rows, columns = height // 2, width // 2
        patches = latents.view(count, channels, rows, 2, columns, 2).permute(0, 2, 4, 1, 3, 5)
        ids = torch.zeros(rows, columns, 3)
        ids[..., 1], ids[..., 2] = torch.arange(rows)[:, None], torch.arange(columns)[None]
        guidance = torch.full((count,), float(guidance_scale))
        predicted = self.unet(
            hidden_states=patches.reshape(count, rows * columns, channels * 4),
            timestep=timesteps / 1000,
            guidance=guidance if self.unet.config.guidance_embeds else None,
            pooled_projections=pooled,
            encoder_hidden_states=embeds,
            txt_ids=torch.zeros(embeds.shape[1], 3),
            img_ids=ids.view(-1, 3),
            return_dict=False,
        )[0]
        patches = predicted.view(count, rows, columns, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return patches.reshape(count, channels, height, width)
'''

BASE_PROCESS = """
import random
from pathlib import Path
from types import SimpleNamespace

import torch
from tqdm import tqdm

from toolkit.accelerator import get_accelerator
from toolkit.dataloader_mixins import Loader
from toolkit.ema import ExponentialMovingAverage
from toolkit.lora_special import LoRASpecialNetwork
from toolkit.stable_diffusion_model import Scheduler


class ToolkitProgressBar(tqdm):
    def pause(self):
        self.paused = True

    def unpause(self):
        self.paused = False


def get_model_class(config):
    raise ImportError("one of many models that nobody asked for cannot be imported")


class BaseSDTrainProcess:
    def __init__(self, process_id, job, config):
        print(config)
        torch.manual_seed(config["training_seed"])
        random.seed(config["training_seed"])
        self.job, self.name, self.datasets = job, job.name, config["datasets"]
        self.save_root = Path(config["training_folder"]) / self.name
        self.save_root.mkdir(parents=True, exist_ok=True)
        (self.save_root / "config.yaml").write_text(str(config))
        self.train_config = SimpleNamespace(**config["train"])
        self.model_config = SimpleNamespace(**config["model"])
        self.network_config = SimpleNamespace(**config["network"])
        self.save_config = SimpleNamespace(**config["save"])
        self.accelerator = get_accelerator()
        self.device_torch = self.accelerator.device
        self.train_device_state_preset = {"vae": "cpu", "unet": str(self.device_torch)}
        self.step_num = self.start_step = self.num_consecutive_oom = 0
        self.sd = self.network = self.optimizer = self.lr_scheduler = self.ema = self.data_loader = None

    def hook_before_model_load(self):
        pass

    def hook_after_model_load(self):
        pass

    def hook_add_extra_train_params(self, params):
        return params

    def before_dataset_load(self):
        pass

    def hook_before_train_loop(self):
        self.optimizer = self.accelerator.prepare(self.optimizer)
        self.lr_scheduler = self.accelerator.prepare(self.lr_scheduler)

    def hook_train_loop(self, batch):
        raise NotImplementedError

    def end_step_hook(self):
        pass

    def done_hook(self):
        pass

    def get_latest_save_path(self, name=None, post="", include_pretrained_lora=True):
        found = sorted(self.save_root.glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
        return found[-1] if found else None

    def load_weights(self, path):
        raise AssertionError("weights chosen by file time are loaded")

    def clean_up_saves(self):
        raise AssertionError("a checkpoint is removed that is not AI-Toolkit's to remove")

    def save(self, step=None):
        raise AssertionError("AI-Toolkit writes a file of its own")

    def sample(self, step=None, is_first=False):
        raise AssertionError("samples were switched off")

    def setup_ema(self):
        if self.train_config.ema_config["use_ema"]:
            params = [param for group in self.optimizer.param_groups for param in group["params"]]
            self.ema = ExponentialMovingAverage(params, self.train_config.ema_config["ema_decay"])

    def run(self):
        train = self.train_config
        self.hook_before_model_load()
        ModelClass = get_model_class(self.model_config)
        self.sd = ModelClass(
            device=self.accelerator.device,
            model_config=self.model_config,
            dtype=train.dtype,
            noise_scheduler=Scheduler(),
        )
        self.sd.load_model()
        self.sd.unet.requires_grad_(False)
        if train.gradient_checkpointing:
            self.sd.unet.enable_gradient_checkpointing()
        self.hook_after_model_load()

        config = self.network_config
        self.network = LoRASpecialNetwork(self.sd.unet, config.linear, **config.network_kwargs)
        self.sd.network = self.network
        self.network.apply_to()
        latest = self.get_latest_save_path(self.name)
        if latest is not None:
            self.load_weights(latest)
        self.params = self.hook_add_extra_train_params([{"params": list(self.network.parameters()), "lr": train.lr}])

        self.optimizer = torch.optim.AdamW(self.params, lr=train.lr, weight_decay=0.0)
        self.setup_ema()
        self.lr_scheduler = torch.optim.lr_scheduler.ConstantLR(self.optimizer, factor=1.0)

        self.before_dataset_load()
        self.data_loader = Loader(self.datasets, train.batch_size, self.sd)
        self.hook_before_train_loop()

        if not (train.skip_first_sample or train.disable_sampling):
            self.sample(self.step_num)
        self.progress_bar = ToolkitProgressBar(
            total=train.steps, desc=self.job.name, initial=self.step_num, iterable=range(0, train.steps)
        )
        self.progress_bar.pause()
        batches = iter(self.data_loader)
        self.optimizer.zero_grad()
        self.lr_scheduler.step(self.step_num)
        self.sd.set_device_state(self.train_device_state_preset)

        for step in range(self.step_num, train.steps):
            self.step_num = step
            self.progress_bar.unpause()
            batch_list = []
            for _ in range(train.gradient_accumulation):
                try:
                    batch = next(batches)
                except StopIteration:
                    batches = iter(self.data_loader)
                    batch = next(batches)
                batch_list.append(batch)
            did_oom = False
            try:
                self.hook_train_loop(batch_list)
            except RuntimeError as error:
                if "CUDA out of memory" not in str(error):
                    raise
                did_oom = True
            if did_oom:
                self.num_consecutive_oom += 1
                self.optimizer.zero_grad(set_to_none=True)
                print("# OOM during training step, skipping batch")
            if self.save_config.save_every and step and step % self.save_config.save_every == 0:
                self.save(step)
            self.progress_bar.update(step + 1 - self.progress_bar.n)
            self.step_num = step + 1
            self.end_step_hook()

        self.progress_bar.close()
        self.save()
        if not train.disable_sampling:
            self.sample(self.step_num)
        print("")
        del self.sd, self.network
        self.done_hook()
"""

SD_TRAINER = """
import torch

from jobs.process.BaseSDTrainProcess import BaseSDTrainProcess


class SDTrainer(BaseSDTrainProcess):
    def hook_before_train_loop(self):
        super().hook_before_train_loop()
        self.blank = self.sd.encode_prompt([""])
        self.sd.text_encoder = None
        self.sd.set_device_state({"everything": "cpu"})

    def calculate_loss(
        self, noise_pred, noise, noisy_latents, timesteps, batch, mask_multiplier=1.0, prior_pred=None, **kwargs
    ):
        return torch.nn.functional.mse_loss(noise_pred.float(), noise - batch.latents)

    def train_single_accumulation(self, batch):
        scheduler, count = self.sd.noise_scheduler, len(batch.file_items)
        with torch.no_grad():
            if hasattr(scheduler, "set_train_timesteps"):
                scheduler.set_train_timesteps(
                    1000, device=self.device_torch, timestep_type="sigmoid", latents=batch.latents, patch_size=1
                )
            else:
                scheduler.set_timesteps(1000, device=self.device_torch)
            timesteps = scheduler.timesteps[torch.randint(0, 1000, (count,))]
            noise = torch.randn_like(batch.latents)
            noisy = self.sd.add_noise(batch.latents, noise, timesteps)
            dropped = [torch.rand(1).item() < item.dataset_config.caption_dropout_rate for item in batch.file_items]
            prompts = [self.blank if drop else item.prompt for drop, item in zip(dropped, batch.file_items)]
            embeds, pooled = (torch.cat(side) for side in zip(*prompts))
        with self.network:
            predicted = self.sd.predict_noise(noisy, embeds, pooled, timesteps, self.train_config.cfg_scale)
            loss = self.calculate_loss(
                noise_pred=predicted,
                noise=noise,
                noisy_latents=noisy,
                timesteps=timesteps,
                batch=batch,
                mask_multiplier=1.0,
                prior_pred=None,
            )
            if not torch.isfinite(loss):
                print("loss is nan")
                loss = torch.zeros_like(loss).requires_grad_(True)
            self.accelerator.backward(loss)
        return loss.detach()

    def hook_train_loop(self, batch):
        batch_list = batch if isinstance(batch, list) else [batch]
        self.optimizer.zero_grad()
        total = sum(self.train_single_accumulation(each) for each in batch_list)
        for group in self.params:
            self.accelerator.clip_grad_norm_(group["params"], self.train_config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update()
        self.lr_scheduler.step()
        return {"loss": (total / len(batch_list)).item()}
"""

FILES = {
    "jobs/__init__.py": "",
    "jobs/BaseJob.py": BASE_JOB,
    "jobs/process/__init__.py": "",
    "jobs/process/BaseSDTrainProcess.py": BASE_PROCESS,
    "toolkit/__init__.py": "",
    "toolkit/accelerator.py": ACCELERATOR,
    "toolkit/data_loader.py": "from tqdm import tqdm\n",
    "toolkit/dataloader_mixins.py": DATALOADER,
    "toolkit/ema.py": EMA,
    "toolkit/lora_special.py": LORA_SPECIAL,
    "toolkit/stable_diffusion_model.py": MODEL,
    "toolkit/train_tools.py": TRAIN_TOOLS,
    "extensions_built_in/__init__.py": "",
    "extensions_built_in/sd_trainer/__init__.py": "",
    "extensions_built_in/sd_trainer/SDTrainer.py": SD_TRAINER,
}


def write_checkout(folder: Path) -> Path:
    """Write the stand-in into ``folder``; the folder."""
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.lstrip(), encoding="utf-8")
    return folder


def forget() -> None:
    """Take its modules out of the process, as a worker does that starts anew."""
    for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
        del sys.modules[name]
