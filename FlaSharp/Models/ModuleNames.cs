namespace FlaSharp.Models;

/// <summary>What the peers call the parts of a model: the only difference between their state dicts.</summary>
internal sealed record ModuleNames(
    string Root, string Embeddings, string FinalNorm, string MixerNorm, string Mixer, string? MlpNorm = null, string? Mlp = null)
{
    /// <summary>flash-linear-attention's models with an MLP.</summary>
    public static readonly ModuleNames Fla = new("model", "embeddings", "norm", "attn_norm", "attn", "mlp_norm", "mlp");

    /// <summary>Mamba and Mamba-2, in flash-linear-attention and Hugging Face alike.</summary>
    public static readonly ModuleNames Mamba = new("backbone", "embeddings", "norm_f", "norm", "mixer");

    /// <summary>Hugging Face's Llama.</summary>
    public static readonly ModuleNames Llama = new(
        "model", "embed_tokens", "norm", "input_layernorm", "self_attn", "post_attention_layernorm", "mlp");
}
