# In[1]:
%matplotlib inline
!pip install -q diffusers transformers

# In[2]:
import torch

def sds(x, t, eps, unet, cond, uncond, guidance_scale, scheduler):
    with torch.no_grad():
        x_t = scheduler.add_noise(x, eps, t)
        c, u = unet(x_t, t, cond).sample, unet(x_t, t, uncond).sample
    return u + guidance_scale * (c - u) - eps
